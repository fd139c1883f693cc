"""What each setting of the clustering costs, changes and scores."""
