"""The record: run folders, the ledger, the one writer to MLflow, the run report."""
