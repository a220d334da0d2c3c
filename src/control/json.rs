//! The status as JSON: every number the status has, with its unit in the key.

use crate::core::status::{
    AgentStatus, DatabaseStatus, Moment, PastError, ReplicaState, ReplicaStatus, SourceState, WriteLockHolds,
};
use serde_json::{Value, json};
use std::time::Duration;

/// The whole status.
pub fn agent(status: &AgentStatus) -> Value {
    json!({
        "health": status.health().to_string(),
        "version": status.version,
        "sqlite_version": status.sqlite_version,
        "pid": status.pid,
        "started": moment(&status.started),
        "databases": status.databases.iter().map(database).collect::<Vec<_>>(),
    })
}

fn database(database: &DatabaseStatus) -> Value {
    let (state, reason) = match &database.state {
        SourceState::Absent => ("absent", None),
        SourceState::Attaching => ("attaching", None),
        SourceState::Detached => ("detached", None),
        SourceState::Attached => ("attached", None),
        SourceState::Refused(reason) => ("refused", Some(reason)),
    };
    json!({
        "path": database.path,
        "health": database.health().to_string(),
        "state": state,
        "refused_because": reason,
        "generation": database.generation.map(|generation| generation.to_string()),
        "position": database.position.map(|position| position.to_string()),
        "proof": database.position.filter(|_| database.is_provable).map(|position| position.to_string()),
        "wal_pages": database.wal_pages,
        "room_is_scarce": database.scarcity.map(|scarcity| scarcity.to_string()),
        "elsewhere": database.elsewhere,
        "mixed": database.mixed,
        "breaks": { "count": database.breaks.count, "last_reason": database.breaks.last_reason },
        "write_lock_holds": write_lock_holds(&database.write_lock_holds),
        "replicas": database.replicas.iter().map(replica).collect::<Vec<_>>(),
    })
}

fn replica(replica: &ReplicaStatus) -> Value {
    let mut value = json!({
        "name": replica.name,
        "location": replica.location,
        "position": replica.position.map(|position| position.to_string()),
        "lag_bytes": replica.lag_bytes,
        "lag_millis": millis(replica.lag_time),
        "last_acked": replica.last_acked.as_ref().map(moment),
        "durable": replica.durable,
        "last_error": replica.last_error.as_ref().map(past_error),
    });
    let state = match &replica.state {
        ReplicaState::Connecting => "connecting",
        ReplicaState::Streaming => "streaming",
        ReplicaState::Waiting => "waiting",
        ReplicaState::SendingSnapshot { done, total } => {
            value["snapshot"] = json!({ "done_bytes": done, "total_bytes": total });
            "sending snapshot"
        }
        ReplicaState::Failing { error, retry_in } => {
            value["failing"] = json!({ "error": error, "retry_in_millis": millis(*retry_in) });
            "failing"
        }
    };
    value["state"] = state.into();
    value
}

fn past_error(error: &PastError) -> Value {
    json!({ "message": error.message, "at": moment(&error.at) })
}

fn moment(moment: &Moment) -> Value {
    json!({ "unix_millis": moment.unix_millis, "age_millis": millis(moment.age) })
}

fn write_lock_holds(holds: &WriteLockHolds) -> Value {
    let bucket = |(bound, count): (Option<Duration>, u64)| json!({ "up_to_micros": bound.map(micros), "count": count });
    json!({
        "count": holds.count(),
        "max_micros": micros(holds.max()),
        "buckets": holds.buckets().map(bucket).collect::<Vec<_>>(),
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
