"""Above the methods: the typed configuration, the registry and the commands that the workflow calls."""
