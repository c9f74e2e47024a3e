"""`fastlocal verify`: what a run is about to trust, proved on the user's own device."""
