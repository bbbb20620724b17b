"""A profile made true of another machine: loads seen by a client, and the factors they tell."""
