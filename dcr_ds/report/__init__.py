"""Reports: what runs did, from the files of their run folders only."""
