"""The paper's tables, rebuilt: systems, tables of them, and the runs that a table needs."""
