"""The interfaces of Stampede as files, made from the code. A developer's tool: no service imports it."""
