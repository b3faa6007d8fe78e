"""Every Celery setting, with its reason.

The database owns each job (a lease and a fencing token); a message is a wake-up call that may be
lost or doubled. Most of what follows keeps Celery from trying to own the job as well.
"""

from __future__ import annotations

from trainer_app.settings import load_settings

_settings = load_settings()

broker_url = _settings.redis.url
# API and workers may start before Redis, and outlive it.
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
# A broker that refuses writes for a while (a full disk: MISCONF) is one that is away. Without it
# such an answer ends the worker, again and again until the disk has room.
broker_channel_error_retry = True
broker_transport_options = {
    # A half-open socket is noticed after 46 s with these, and not within 110 s without.
    "socket_timeout": 15,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 10,
    # Messages are acknowledged on receipt: what is unacknowledged is lost with its connection and
    # may come back soon. The database ignores what comes twice.
    "visibility_timeout": 600,
    "unacked_restore_interval": 10,
    # A worker drains its own pinned queue before the shared one: in the order of -Q.
    "queue_order_strategy": "priority",
}

# Early acknowledgement: late ones bring duplicates after a reset connection, and a crash loop
# without bound. The lease and the dispatcher redeliver.
task_acks_late = False
task_reject_on_worker_lost = False
# A busy worker would hoard one queued job, for days.
worker_disable_prefetch = True
worker_prefetch_multiplier = 1
# One job a device.
worker_concurrency = 1
# Celery's pool of processes, prefork: the parent answers pings and revokes while the child trains.
# Ours starts them ahead: a new one takes seconds to import torch.
worker_pool = "tasks.spare:TaskPool"
# A fresh child inherits no CUDA state from its parent.
worker_pool_start_method = "spawn"
# The task goes on when the broker's connection breaks: cancelling it lost the job.
worker_cancel_long_running_tasks_on_connection_loss = False
# Importing torch on a busy machine takes longer than the 4 s that Celery allows a child.
worker_proc_alive_timeout = 60.0

# The state of a job is in the database: Celery's own state would say SUCCESS of a drained job.
result_backend = None
task_ignore_result = True
# What Flower shows.
worker_send_task_events = True
task_send_sent_event = True
task_track_started = True

# The tasks, and the modules whose signal handlers the pool's child needs.
include = ["tasks.shells", "tasks.worker"]

task_serializer = "json"
accept_content = ["json"]
task_default_queue = _settings.jobs.queue_name
# Messages carry a job's id alone; a priority is turned into one of four lists by kombu.
task_default_priority = 9
timezone = "UTC"
enable_utc = True
# structlog formats what Celery's loggers say.
worker_hijack_root_logger = False
worker_redirect_stdouts = False
