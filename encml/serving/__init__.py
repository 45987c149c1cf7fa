"""Private inference: models shared into a cluster of three parties, and clients that ask them."""

from encml.serving.client import Client, QueryCost
from encml.serving.cluster import Cluster
from encml.serving.graph import Graph
from encml.serving.model_store import PartyModel, load_model_shares, load_party_file, save_model_shares, share_model
from encml.serving.registry import install_file
from encml.serving.server import run_party
from encml.serving.trained import save_trained_shares, trained_shares
from encml.serving.wire import ModelStatus, Status

__all__ = [
    "Client",
    "Cluster",
    "Graph",
    "ModelStatus",
    "PartyModel",
    "QueryCost",
    "Status",
    "install_file",
    "load_model_shares",
    "load_party_file",
    "run_party",
    "save_model_shares",
    "save_trained_shares",
    "share_model",
    "trained_shares",
]
