//! Where a member's work is done: its model, its data, its files.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tierline_engine::Stop;
use tierline_federate::{Contribution, Layout, Report, Sender, Vectors};
use tierline_graph::Model;
use tierline_node::admit::Class;
use tierline_node::federation::participation::Encoder;
use tierline_node::federation::{Update, Work};
use tierline_proto::v1::{Code, Failure};
use tierline_train::data::{Others, names_together};
use tierline_train::federated::{self, LocalTrainer, ParameterLayout, Share};

use crate::duties::federation::Jobs;
use crate::duties::federation::messages::internal;
use crate::duties::federation::{Folder, JobManifest, data};

/// A slow device looks so often whether it is to stop.
const DOZE: Duration = Duration::from_millis(50);

/// What work needs: made once, when the job is heard of.
pub(super) struct Workspace {
    pub(super) layout: Layout,
    pub(super) initial: Vectors,
    /// Classes that the data sets here name, where the job's file says none.
    pub(super) names: Vec<String>,
    others: Others,
    /// The job's.
    seed: u64,
    /// Of an end.
    trainer: Option<(LocalTrainer, Share)>,
}

impl Workspace {
    /// Opens what a job needs on this node, and counts the examples it learns
    /// from.
    pub(super) fn open(
        jobs: &Jobs,
        manifest: &JobManifest,
        model: Bytes,
        coordinates: bool,
    ) -> Result<(Self, u64), Failure> {
        let unfit = |e: tierline_train::TrainError| Failure::new(Code::Infeasible, e.to_string());
        let job = &manifest.job;
        let model = Model::parse(model).map_err(internal)?;
        if coordinates {
            let parameter_layout = ParameterLayout::new(model, job).map_err(internal)?;
            let (layout, initial) = (parameter_layout.layout().clone(), parameter_layout.initial());
            let (names, others) = (Vec::new(), job.data.other_classes);
            return Ok((Self { layout, initial, names, others, seed: job.seed, trainer: None }, 1));
        }
        let share = data::share(jobs, job)?;
        let (engine, options) = (jobs.cx.device.engine_for(Class::Training), jobs.cx.me.config().load_options());
        let mut public = None;
        let mut trainer = LocalTrainer::new(&engine, model, job, &options).map_err(internal)?;
        if let Some(distil) = manifest.federation().of_ends().strategy.behaviour().members_distil() {
            let whole = data::open_public(jobs, job, distil)?;
            public = whole.class_names().filter(|_| manifest.federation().learns_public_classes()).map(<[_]>::to_vec);
            trainer = trainer.with_public(&engine, &whole, &options).map_err(unfit)?;
        }
        for data in [&share.seen].into_iter().chain(&share.held_out) {
            trainer.check(data).map_err(unfit)?;
        }
        let examples = share.seen.len() as u64;
        let layout = trainer.parameter_layout().layout().of_examples(examples).map_err(|e| unfit(e.into()))?;
        let initial = trainer.initial();
        let names = match job.data.classes.is_empty() {
            true => {
                let own = [&share.seen].into_iter().chain(&share.held_out).filter_map(|data| data.class_names());
                names_together(own.chain(public.as_deref()))
            }
            false => Vec::new(),
        };
        let others = job.data.other_classes;
        Ok((Self { layout, initial, names, others, seed: job.seed, trainer: Some((trainer, share)) }, examples))
    }

    /// Numbers classes as the job does; nothing where its names are none.
    pub(super) fn name_classes(&mut self, names: &[String]) -> Result<(), Failure> {
        let Some((trainer, share)) = self.trainer.as_mut().filter(|_| !names.is_empty()) else { return Ok(()) };
        trainer.name_classes(names);
        let unfit = |e: tierline_train::data::DataError| Failure::new(Code::Infeasible, e.to_string());
        share.seen = share.seen.numbered(names, self.others).map_err(unfit)?;
        if let Some(held_out) = &mut share.held_out {
            *held_out = held_out.numbered(names, self.others).map_err(unfit)?;
        }
        Ok(())
    }

    /// Does an end's task; `None` when it was told to stop.
    pub(super) fn train(
        &mut self,
        jobs: &Jobs,
        folder: &Folder,
        sender: &Sender,
        work: Work,
        start: &Vectors,
        stop: &Stop,
    ) -> Result<Option<Update>, Failure> {
        let Some((trainer, share)) = &mut self.trainer else { return Err(internal("this node doesn't train")) };
        let begun = Instant::now();
        let before = folder.load_kept()?;
        let mut kept = before.clone();
        let task = federated::LocalTask { member: jobs.cx.me.name(), round: work.round, start };
        let done = if work.evaluate {
            let report = self.conclude(jobs, folder, work.round, start, stop)?;
            report.map(|report| Contribution { vectors: Vectors::new(), report })
        } else {
            trainer.work(task, share, &mut kept, stop).map_err(internal)?
        };
        let Some(mut contribution) = done else { return Ok(None) };
        // A device that is said to be slower is.
        let until = begun + begun.elapsed().mul_f64(jobs.cx.me.config().slowdown.get());
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if stop.is_pulled() {
                return Ok(None);
            }
            std::thread::sleep(left.min(DOZE));
        }
        contribution.report.seconds = begun.elapsed().as_secs_f64();
        self.hold(jobs, folder, sender, work, &contribution, (&before, kept)).map(Some)
    }

    /// Evaluates the model that a job led to, and keeps an end's own if it has
    /// one; `None` when it was told to stop.
    pub(super) fn conclude(
        &mut self,
        jobs: &Jobs,
        folder: &Folder,
        round: u64,
        start: &Vectors,
        stop: &Stop,
    ) -> Result<Option<Report>, Failure> {
        let Some((trainer, share)) = &mut self.trainer else { return Err(internal("this node doesn't train")) };
        let task = federated::LocalTask { member: jobs.cx.me.name(), round, start };
        let Some((report, own)) = trainer.conclude(task, share, &folder.load_kept()?, stop).map_err(internal)? else {
            return Ok(None);
        };
        if let Some(own) = own {
            folder.write(&folder.result(), &own.to_bytes().map_err(internal)?)?;
        }
        Ok(Some(report))
    }

    /// Puts an update of this member on the disk.
    pub(super) fn hold(
        &self,
        jobs: &Jobs,
        folder: &Folder,
        sender: &Sender,
        work: Work,
        contribution: &Contribution,
        (before, after): (&federated::MemberState, federated::MemberState),
    ) -> Result<Update, Failure> {
        let encoder = Encoder { sender, layout: &self.layout, seed: self.seed, member: jobs.cx.me.name() };
        let encoded = encoder.encode(work, contribution, before, after).map_err(internal)?;
        folder.write(&folder.outgoing(work.task.0), &encoded.bytes)?;
        folder.save_kept(work.task.0, &encoded.counted, before)?;
        Ok(encoded.update)
    }
}
