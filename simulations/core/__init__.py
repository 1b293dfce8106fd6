"""The agreement alone under attack: the shipped core, log replay and repair on virtual clocks and bad links."""
