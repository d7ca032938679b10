"""A thin client for the HTTP interface of Stampede."""
