#!/bin/sh
# Deletes Kubernetes jobs with their pods.
exec kubectl delete --wait=false "$@"
