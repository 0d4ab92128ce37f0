"""What must survive a restart: the schema, the repositories, the transaction and the event log."""
