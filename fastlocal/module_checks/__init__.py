"""What a user's module and loss do, found by a few first steps of plain torch, and compared with ours."""
