"""Federated learning with secure averaging: no server and no single party sees a client's update."""

from encml.federated.aggregation import Aggregate, AggregationSettings, SecureAggregator
from encml.federated.client import Client
from encml.federated.dpsgd import ExamplePrivacy
from encml.federated.runner import ClientSampling, FederatedRunner, RoundResult
from encml.federated.server import FederatedServer, ServerStep
from encml.federated.training import FedAvg, FedSGD

__all__ = [
    "Aggregate",
    "AggregationSettings",
    "Client",
    "ClientSampling",
    "ExamplePrivacy",
    "FedAvg",
    "FedSGD",
    "FederatedRunner",
    "FederatedServer",
    "RoundResult",
    "SecureAggregator",
    "ServerStep",
]
