"""What plugs the backbone into other libraries; each module imports its library."""
