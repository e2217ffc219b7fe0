"""The policy enforcement point: who may do what to which task, and what is written about it."""
