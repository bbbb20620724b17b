"""Tables of requests from files: rows, columns, times, and one checked Trace."""
