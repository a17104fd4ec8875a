//! Groups of users, and grants to accounts and groups.
//!
//! What must stay true: a grant that is set takes the place of the one for the same pattern, and one
//! that is taken away is gone at once for every member; nobody grants what they do not administer.

use super::super::keys;
use super::super::raft_types::decode;
use super::accounts::MOST_GRANTS;
use super::accounts::Reach;
use super::accounts::invalid;
use super::accounts::unknown;
use super::{Apply, DONE, Decision, Refusal, refuse};
use crate::access::Grant;
use crate::access::GroupName;
use crate::access::Pattern;
use crate::proto::state::v1 as pb;
use std::io;

const MOST_GROUPS: usize = 2000;
/// Of one user.
const MOST_MEMBERSHIPS: usize = 100;

fn not_all(what: &str) -> Refusal {
    let message = format!("only an admin of the whole registry (*:admin) may {what}");
    refuse(pb::Reason::NotAllowed, message)
}

/// The grants with this one in place of the one for the same pattern. Err: there are too many, or
/// none to take away.
fn replaced(
    grants: &[pb::GrantRecord],
    grant: &pb::GrantRecord,
) -> Result<Vec<pb::GrantRecord>, Refusal> {
    let others = grants.iter().filter(|other| other.pattern != grant.pattern);
    let mut grants_now: Vec<_> = others.cloned().collect();
    if grant.rights == 0 {
        return match grants_now.len() == grants.len() {
            true => Err(invalid(format!("there is no grant for {}", grant.pattern))),
            false => Ok(grants_now),
        };
    }
    grants_now.push(grant.clone());
    match grants_now.len() <= MOST_GRANTS {
        true => Ok(grants_now),
        false => Err(invalid(format!("more than {MOST_GRANTS} grants"))),
    }
}

impl Apply<'_> {
    fn group(&self, name: &str) -> io::Result<Option<pb::GroupRecord>> {
        self.tx.message(&keys::group(name))
    }

    pub fn put_group(&mut self, put: &pb::PutGroup) -> Decision {
        if !Reach::of(put.authority.as_ref()).is_all() {
            return Ok(Err(not_all("make groups")));
        }
        let Some(record) = &put.record else {
            return Ok(Err(invalid("a group without a record")));
        };
        if let Err(error) = put.name.parse::<GroupName>() {
            return Ok(Err(invalid(error)));
        }
        for grant in &record.grants {
            if let Err(error) = Grant::try_from(grant) {
                return Ok(Err(invalid(error)));
            }
        }
        let key = keys::group(&put.name);
        if self.tx.has(&key)? {
            let message = format!("there is a group {:?} already", put.name);
            return Ok(Err(refuse(pb::Reason::NameTaken, message)));
        }
        if self.tx.scan(keys::GROUPS)?.len() >= MOST_GROUPS || record.grants.len() > MOST_GRANTS {
            return Ok(Err(invalid(
                "there are too many groups, or too many grants",
            )));
        }
        self.tx.put_message(key, record);
        Ok(Ok(DONE))
    }

    pub fn remove_group(&mut self, remove: &pb::RemoveGroup) -> Decision {
        if !Reach::of(remove.authority.as_ref()).is_all() {
            return Ok(Err(not_all("remove groups")));
        }
        if self.group(&remove.name)?.is_none() {
            return Ok(Err(unknown("group", &remove.name)));
        }
        for (key, value) in self.tx.scan(keys::ACCOUNTS)? {
            let mut record: pb::AccountRecord = decode("account", &value)?;
            if record.groups.contains(&remove.name) {
                record.groups.retain(|group| *group != remove.name);
                self.tx.put_message(key, &record);
            }
        }
        self.tx.delete(keys::group(&remove.name));
        Ok(Ok(DONE))
    }

    pub fn set_member(&mut self, set: &pb::SetMember) -> Decision {
        let reach = Reach::of(set.authority.as_ref());
        let group = self.group(&set.group)?;
        if !group.is_some_and(|group| reach.covers_all(&group.grants)) {
            return Ok(Err(unknown("group", &set.group)));
        }
        let user = self.account(&set.account)?;
        let user = user.filter(|record| record.kind() == pb::AccountKind::User);
        let Some(mut record) = user else {
            return Ok(Err(unknown("user", &set.account)));
        };
        record.groups.retain(|group| *group != set.group);
        if set.member {
            if record.groups.len() >= MOST_MEMBERSHIPS {
                let told = format!("{} is in {MOST_MEMBERSHIPS} groups already", set.account);
                return Ok(Err(invalid(told)));
            }
            record.groups.push(set.group.clone());
        }
        self.store_account(&set.account, &record);
        Ok(Ok(DONE))
    }

    pub fn set_grant(&mut self, set: &pb::SetGrant) -> Decision {
        let grant = set.grant.clone().unwrap_or_default();
        let pattern: Pattern = match grant.pattern.parse() {
            Ok(pattern) => pattern,
            Err(error) => return Ok(Err(invalid(error))),
        };
        if grant.rights != 0
            && let Err(error) = Grant::try_from(&grant)
        {
            return Ok(Err(invalid(error)));
        }
        let reach = Reach::of(set.authority.as_ref());
        let takes_away = grant.rights == 0;
        if !reach.covers(&pattern) {
            let message =
                format!("you may grant what you administer, and {pattern} is not all of it yours");
            return Ok(Err(refuse(pb::Reason::NotAllowed, message)));
        }
        match (set.account.as_str(), set.group.as_str()) {
            ("", name) => {
                // What others administer too must not slip from their hands by a grant of one's own.
                let may = |record: &pb::GroupRecord| {
                    takes_away || record.grants.is_empty() || reach.covers_all(&record.grants)
                };
                let Some(mut record) = self.group(name)?.filter(may) else {
                    return Ok(Err(unknown("group", name)));
                };
                record.grants = match replaced(&record.grants, &grant) {
                    Ok(grants) => grants,
                    Err(refusal) => return Ok(Err(refusal)),
                };
                self.tx.put_message(keys::group(name), &record);
            }
            (name, "") => {
                let may = |record: &pb::AccountRecord| {
                    takes_away
                        || record.kind() == pb::AccountKind::User
                        || reach.governs(name, record)
                };
                let Some(mut record) = self.account(name)?.filter(may) else {
                    return Ok(Err(unknown("account", name)));
                };
                record.grants = match replaced(&record.grants, &grant) {
                    // Without any, a key is good for all that its owner may.
                    Ok(grants) if grants.is_empty() && record.kind() == pb::AccountKind::Key => {
                        let told = "the last grant of an access key stays; revoke the key instead";
                        return Ok(Err(invalid(told)));
                    }
                    Ok(grants) => grants,
                    Err(refusal) => return Ok(Err(refusal)),
                };
                self.store_account(name, &record);
            }
            _ => {
                return Ok(Err(invalid(
                    "a grant is to an account or to a group, not both",
                )));
            }
        }
        Ok(Ok(DONE))
    }
}
