"""Studies of what is built here: comparisons at equal steps, counted work, motion taught without labels."""
