#!/bin/sh
# Submits a job script of Snakemake as a Kubernetes job, and prints the job's name.
set -eu
rule=$1 cores=$2 megabytes=$3 minutes=$4 gpus=$5 script=$6
kubectl create --output=name --filename=- <<END
apiVersion: batch/v1
kind: Job
metadata:
  generateName: lpvit-$(echo "$rule" | tr _ -)-
spec:
  backoffLimit: 0  # Snakemake retries, with more memory and time
  ttlSecondsAfterFinished: 86400
  template:
    spec:
      restartPolicy: Never
      activeDeadlineSeconds: $((60 * minutes))  # of the pod, which does not count the time in the queue
      containers:
        - name: lpvit
          image: "$IMAGE"
          command: [/bin/sh, "$script"]
          resources:
            limits: {cpu: $cores, memory: ${megabytes}M, nvidia.com/gpu: $gpus}
          volumeMounts:
            - {name: data, mountPath: "$MOUNT"}
            - {name: shared-memory, mountPath: /dev/shm}
      volumes:
        - name: data
          persistentVolumeClaim: {claimName: "$CLAIM"}
        - name: shared-memory  # between the processes of a loader or a training; 64 MB without this
          emptyDir: {medium: Memory}
END
