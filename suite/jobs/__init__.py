"""The stages of the workflow, one module each: read files, call one package, write the result with its provenance.

Nothing here decides what depends on what: that is the Snakefile's, whose rules name the stage's module among their
inputs, so that an edit here makes that stage's results out of date.
"""
