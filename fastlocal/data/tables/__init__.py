"""Samples in tables and archives: files read to arrays, arrays turned to inputs and labels."""
