"""What is compared and how it is scored: systems, their adapters, metrics, predictions, the paper's averages."""
