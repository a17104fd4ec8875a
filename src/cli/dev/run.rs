//! The life of `roadstead dev`: start all, wait until ready, then answer what is asked and tell
//! what happens, until told to stop. One thread does it all, in one loop.

use super::Args;
use super::children::Children;
use super::children::End;
use super::control;
use super::control::Asked;
use super::control::Request;
use super::control::State;
use super::event::Admin;
use super::event::Event;
use super::plan::Plan;
use super::ready;
use super::ready::Clients;
use super::tour;
use crate::cli::output::Failure;
use crate::cli::output::Format;
use crate::login::ADMIN;
use crate::tasks::Tasks;
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use secrecy::ExposeSecret;
use std::rc::Rc;
use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

type Reply = oneshot::Sender<Result<State, Failure>>;

/// Ctrl-C, or TERM from a supervisor.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> Result<Stop, Failure> {
        let failed = |error| Failure::failed("listen for signals", &error);
        Ok(Stop {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    async fn told(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

pub async fn run(args: Args, format: Format) -> Result<(), Failure> {
    let mut stop = Stop::new()?;
    let plan = Plan::make(&args).await?;
    let tasks = Tasks::new();
    let (sender, asked) = mpsc::channel(8);
    control::listen(&plan.dir, sender, &tasks)
        .map_err(|error| Failure::failed("listen for `roadstead dev` commands", &error))?;
    tour::write_sample(&plan.dir)
        .map_err(|error| Failure::failed("write the sample image", &error))?;
    let mut dev = Dev {
        plan: &plan,
        format,
        clients: Rc::new(Clients::new(&plan)?),
        children: Children::new(&plan),
        killing: Vec::new(),
        starting: FuturesUnordered::new(),
    };
    let result = dev.live(&mut stop, asked).await;
    dev.children.stop().await;
    tasks.stop_and_wait().await;
    result
}

struct Dev<'a> {
    plan: &'a Plan,
    format: Format,
    clients: Rc<Clients>,
    children: Children<'a>,
    /// Who waits for a region to be down.
    killing: Vec<(usize, Reply)>,
    /// Regions that are to be up again.
    starting: FuturesUnordered<LocalBoxFuture<'a, Started>>,
}

struct Started {
    region: usize,
    pid: u32,
    /// None: its process ended.
    up: Option<Result<(), Failure>>,
    reply: Reply,
}

impl Dev<'_> {
    /// Until told to stop; an error when the cluster never was ready.
    async fn live(
        &mut self,
        stop: &mut Stop,
        mut asked: mpsc::Receiver<Asked>,
    ) -> Result<(), Failure> {
        for region in 0..self.plan.regions.len() {
            self.children.start(region)?;
        }
        let clients = self.clients.clone();
        tokio::select! {
            ready = ready::cluster(&clients, self.plan) => ready?,
            end = self.children.ended() => return Err(self.never_ready(&end)),
            () = stop.told() => return Ok(()),
        }
        self.tell(&Event::Ready {
            regions: &self.children.states(),
            admin: self.plan.admin.as_ref().map(|admin| Admin {
                user: ADMIN,
                password: admin.password.expose_secret(),
            }),
        })?;
        loop {
            tokio::select! {
                () = stop.told() => return Ok(()),
                end = self.children.ended() => self.down(&end)?,
                Some(started) = self.starting.next() => self.up(started)?,
                Some(asked) = asked.recv() => self.answer(asked),
            }
        }
    }

    fn tell(&self, event: &Event<'_>) -> Result<(), Failure> {
        event.tell(self.plan, self.format)
    }

    fn never_ready(&self, end: &End) -> Failure {
        let region = &self.plan.regions[end.region];
        Failure::limit(
            format!(
                "{} ended before the cluster was ready ({}):\n{}",
                region.name,
                end.status,
                self.children.last_words(end.region)
            ),
            format!("its whole log is {}", region.log.display()),
        )
    }

    fn down(&mut self, end: &End) -> Result<(), Failure> {
        let name = &self.plan.regions[end.region].name;
        self.tell(&Event::RegionDown {
            name,
            pid: end.pid,
            status: &end.status,
        })?;
        for (_, reply) in self
            .killing
            .extract_if(.., |(i, _)| *i == end.region)
            .collect::<Vec<_>>()
        {
            // Whoever asked may have left; the same below.
            let _ = reply.send(Ok(self.state()));
        }
        Ok(())
    }

    fn up(&mut self, started: Started) -> Result<(), Failure> {
        let name = &self.plan.regions[started.region].name;
        let result = started.up.unwrap_or_else(|| {
            Err(Failure::limit(
                format!(
                    "{name} ended again:\n{}",
                    self.children.last_words(started.region)
                ),
                format!(
                    "its whole log is {}",
                    self.plan.regions[started.region].log.display()
                ),
            ))
        });
        if result.is_ok() {
            self.tell(&Event::RegionUp {
                name,
                pid: started.pid,
            })?;
        }
        let _ = started.reply.send(result.map(|()| self.state()));
        Ok(())
    }

    fn state(&self) -> State {
        State {
            regions: self.children.states(),
        }
    }

    fn answer(&mut self, asked: Asked) {
        let Asked { request, reply } = asked;
        let refusal = match request {
            Request::Status => {
                let _ = reply.send(Ok(self.state()));
                return;
            }
            Request::Kill { region } => match self.running(&region) {
                Ok((i, Some(_))) => {
                    self.children.kill(i);
                    self.killing.push((i, reply));
                    return;
                }
                Ok((_, None)) => Failure::refused(format!("{region} is down already"), "start it"),
                Err(failure) => failure,
            },
            Request::Start { region } => match self.running(&region) {
                Ok((i, None)) => return self.start(i, reply),
                Ok((_, Some(_))) => Failure::refused(format!("{region} runs already"), "kill it"),
                Err(failure) => failure,
            },
        };
        let _ = reply.send(Err(refusal));
    }

    fn start(&mut self, i: usize, reply: Reply) {
        let pid = match self.children.start(i) {
            Ok(pid) => pid,
            Err(failure) => {
                let _ = reply.send(Err(failure));
                return;
            }
        };
        let (clients, region) = (self.clients.clone(), &self.plan.regions[i]);
        let gone = self.children.gone(i);
        self.starting.push(Box::pin(async move {
            let up = tokio::select! {
                up = ready::region(&clients, region) => Some(up),
                () = gone.cancelled() => None,
            };
            Started {
                region: i,
                pid,
                up,
                reply,
            }
        }));
    }

    /// The region of that name, and its process while it has one.
    fn running(&self, name: &str) -> Result<(usize, Option<u32>), Failure> {
        match self
            .plan
            .regions
            .iter()
            .position(|region| region.name == name)
        {
            Some(i) => Ok((i, self.children.pid(i))),
            None => Err(Failure::refused(
                format!("there is no region {name}"),
                format!("name one of r1 to r{}", self.plan.regions.len()),
            )),
        }
    }
}
