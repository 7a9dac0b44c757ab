#!/bin/sh
# Prints `running`, `success` or `failed` for a Kubernetes job.
state='{.kind} {.status.conditions[?(@.status=="True")].type}'
if ! found=$(kubectl get "$1" --ignore-not-found --output="jsonpath=$state"); then
    found=unknown # the server did not answer; Snakemake asks again
fi
case $found in
    *Complete*) echo success ;;
    *Failed* | "") echo failed ;; # or deleted
    *) echo running ;;
esac
