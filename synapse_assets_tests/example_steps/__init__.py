"""Steps that the tests run; a package of its own, as a user's steps are."""
