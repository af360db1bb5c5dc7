"""Measures of pretrained encoders: frozen, trained further, and of the clusters they made."""

from mmssl.hooks import Register, hookimpl


@hookimpl
def register_evaluators(register: Register) -> None:
    """What frozen encoders know, and what they are worth as a beginning."""
    register("finetune", "mmssl_evaluators.finetune:Finetune")
    register("linear_probe", "mmssl_evaluators.linear_probe:LinearProbe")
    register("low_rank", "mmssl_evaluators.low_rank:LowRank")
    register("svm", "mmssl_evaluators.svm:SVM")
    register("knn", "mmssl_evaluators.knn:KNN")
    register("retrieval", "mmssl_evaluators.retrieval:Retrieval")
    register("clusters", "mmssl_evaluators.clusters:Clusters")
    register("filters", "mmssl_evaluators.filters:Filters")


@hookimpl
def register_objectives(register: Register) -> None:
    """The baselines that evaluators compare with."""
    register("supervised", "mmssl_evaluators.supervised:Supervised")
    register("scratch", "mmssl_evaluators.scratch:Scratch")
