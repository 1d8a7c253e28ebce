"""The jobs of the workflow, a module a stage: read files, call one package, write the result with its record.

Nothing here decides what depends on what: that is the rules', of whose source inputs the stage's module is one, so that
an edit here makes that stage's results out of date.
"""
