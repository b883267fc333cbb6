"""What clients make of broken answers."""
