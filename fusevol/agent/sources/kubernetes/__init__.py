"""Pods and objects from a Kubernetes API server.

credentials_helper   a short-lived process: kubeconfig or in-cluster, by the `kubernetes` package
credentials          its parent: TLS context and token, read anew when their files change or they expire
http2, pool          watches multiplexed over few connections
client               the verbs, Status objects as exceptions, the authorizer's refusals, Retry-After
schema               what is decoded of API objects
pods, objects, tokens   one reflector each: of the node's Pods, of one object, of one ServiceAccountToken
source               all of it as a Source
events               Events of Pods, aggregated by count
"""
