"""From repairs to records, stores, tables and pages."""
