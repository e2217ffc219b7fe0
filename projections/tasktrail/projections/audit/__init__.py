"""The audit store: the trail in DuckDB, for people who ask who authorised each step."""
