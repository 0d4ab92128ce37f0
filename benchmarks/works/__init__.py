"""The rows of the table, one module each: ``run(scene)`` measures and returns an outcome."""
