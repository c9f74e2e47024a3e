"""Parameters as flat rows: layout, rows of clients, number formats, losses."""
