"""What a study recommends, as one call over what there is."""
