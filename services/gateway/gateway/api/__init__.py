"""The routes and the shapes of their bodies. Must not hold a rule of the sale."""
