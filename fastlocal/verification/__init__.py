"""`fastlocal verify`: checks of the machine, the kernels and the local steps of a run on the user's device."""
