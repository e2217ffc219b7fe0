"""The shell around the core: Ledger, access, projections at work, HTTP, command line."""
