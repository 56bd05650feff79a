"""What a hypernetwork does, to be looked at: its adapters, gates, attention and answers on a set of tasks."""
