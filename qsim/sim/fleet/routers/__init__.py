"""Which server a request goes to: one class a router, and what it may know of the fleet."""
