"""What every search shares: simulations as tasks, executors, studies, spaces."""
