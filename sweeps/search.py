"""The highest learning rate at which a model stays coherent, found by bisection on the log scale.

The coherent rate falls as the learning rate rises. Each run gives a count of coherent answers, so each comparison with
the bound is uncertain: a rate counts as above or below it once its interval is off the bound, and a rate too close to
tell is asked again, to a limit, for there the answer lies. The estimate is the crossing of a logistic curve through all
counts, which uses the runs on both sides.
"""
