"""The functions of `import fastlocal`."""
