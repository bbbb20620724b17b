"""Workloads put together anew from aggregates: a server's metrics, or a few numbers.

``metrics`` reads scrapes and range queries, ``histogram`` makes lengths of buckets, and
``reconstruct`` a workload of both, with what had to be assumed.
"""
