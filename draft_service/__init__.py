"""The head of a pipeline: endpoint, scheduler, prediction trees and the draft model."""
