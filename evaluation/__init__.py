"""Features, quality measures, speed, tables, plots and the report."""
