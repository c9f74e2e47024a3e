"""Parameters as flat rows: their layout, the rows of the clients, number formats, losses."""
