"""The shipped services, watched: each notes the functions that are entered with the purchase in their hands."""
