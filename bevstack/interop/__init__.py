"""Everything that only exists because another package is as it is: stand-ins, legacy key maps, compatibility."""
