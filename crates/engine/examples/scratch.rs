// scratch: temporary slicer and measurements
use protobuf::MessageField;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};
use tierline_engine::profiler::*;
use tierline_engine::*;
use tierline_graph::onnx::{TypeProto, ValueInfoProto, type_proto};
use tierline_graph::*;

fn frontiers(m: &Model) -> Vec<Vec<String>> {
    let g = m.graph();
    let init: HashSet<&str> = g.initializer.iter().map(|t| t.name()).collect();
    let mut last: HashMap<&str, usize> = HashMap::new();
    for (i, n) in g.node.iter().enumerate() {
        for x in &n.input {
            last.insert(x, i);
        }
    }
    for o in &g.output {
        last.insert(o.name(), usize::MAX);
    }
    // constness: nodes w/o non-const inputs
    let mut cst: HashSet<&str> = init.clone();
    for n in &g.node {
        if n.input.iter().all(|x| x.is_empty() || cst.contains(x.as_str())) {
            for o in &n.output {
                cst.insert(o);
            }
        }
    }
    let mut live: Vec<&str> =
        m.inputs().iter().map(|v| g.input.iter().find(|i| i.name() == v.name).unwrap().name()).collect();
    let mut out = vec![];
    for (i, n) in g.node.iter().enumerate() {
        for o in &n.output {
            if !cst.contains(o.as_str()) {
                live.push(o);
            }
        }
        live.retain(|x| last.get(x).is_some_and(|&l| l > i));
        if live.len() == 1 && i + 1 < g.node.len() && last[live[0]] != usize::MAX {
            let f = vec![live[0].to_string()];
            if out.last() != Some(&f) {
                out.push(f);
            }
        }
    }
    out
}
fn value(name: &str) -> ValueInfoProto {
    let mut k = TypeProto::new();
    k.set_tensor_type(type_proto::Tensor { elem_type: Some(1), ..Default::default() });
    ValueInfoProto { name: Some(name.into()), type_: MessageField::some(k), ..Default::default() }
}
pub fn cut(m: &Model, at: &[Vec<String>]) -> Vec<Model> {
    let g = m.graph();
    let mut res = vec![];
    for s in 0..=at.len() {
        let ins: HashSet<&str> = if s == 0 { HashSet::new() } else { at[s - 1].iter().map(String::as_str).collect() };
        let mut need: HashSet<&str> = if s == at.len() {
            g.output.iter().map(|o| o.name()).collect()
        } else {
            at[s].iter().map(String::as_str).collect()
        };
        let mut keep = vec![];
        for (i, n) in g.node.iter().enumerate().rev() {
            if n.output.iter().any(|o| need.contains(o.as_str()) && !ins.contains(o.as_str())) {
                keep.push(i);
                need.extend(n.input.iter().map(String::as_str));
            }
        }
        keep.reverse();
        let mut p = m.proto().clone();
        let q = p.graph.as_mut().unwrap();
        q.node = keep.iter().map(|&i| g.node[i].clone()).collect();
        q.initializer.retain(|t| need.contains(t.name()));
        q.value_info.clear();
        if s > 0 {
            q.input = at[s - 1].iter().map(|n| value(n)).collect();
        }
        if s < at.len() {
            q.output = at[s].iter().map(|n| value(n)).collect();
        }
        res.push(Model::from_proto(p).unwrap());
    }
    res
}
fn thin(c: Vec<Vec<String>>, max: usize) -> Vec<Vec<String>> {
    if c.len() <= max {
        return c;
    }
    (0..max).map(|i| c[(2 * i + 1) * c.len() / (2 * max)].clone()).collect()
}
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let model = Model::load(args[1].as_ref()).unwrap();
    let side: usize = args[2].parse().unwrap();
    let engine = if args[3] == "rten" { rten() } else { onnxruntime(None).unwrap() };
    let threads: usize = args[4].parse().unwrap();
    let shape: Vec<usize> = model.inputs()[0]
        .shape
        .as_ref()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(i, d)| {
            d.known().map_or(
                if i == 0 {
                    1
                } else if i == 1 {
                    3
                } else {
                    side
                },
                |k| k as usize,
            )
        })
        .collect();
    let n: usize = shape.iter().product();
    let x =
        Tensor::new(shape.clone(), Elements::F32((0..n).map(|i| ((i % 977) as f32 / 488.) - 1.).collect())).unwrap();
    let name = model.inputs()[0].name.clone();
    let mut shapes = BTreeMap::new();
    shapes.insert(name.clone(), shape.iter().map(|&d| d as u64).collect());
    let types = infer_types_with(&model, &shapes).unwrap();
    let all = frontiers(&model);
    let cuts = thin(all.clone(), 32);
    println!("{} frontiers, {} used", all.len(), cuts.len());
    let load = LoadOptions::with_threads(threads);
    if args[5] == "overhead" {
        overhead(&model, &x, &name, engine.as_ref(), threads);
        return;
    }
    let slicer = |at: &[Vec<String>]| Ok(cut(&model, at));
    let input = [(name.clone(), x.clone())];
    let mut runs = vec![];
    for _ in 0..args[5].parse::<usize>().unwrap() {
        let o = ProfileOptions {
            load: load.clone(),
            anchors_max: std::env::var("A").map_or(0, |a| a.parse().unwrap()),
            budget: Duration::from_secs_f64(args[6].parse().unwrap()),
            ..Default::default()
        };
        let t = Instant::now();
        let p = profile_with(
            engine.as_ref(),
            &Subject { model: &model, types: &types, cuts: &cuts, slice: &slicer, inputs: &input },
            &o,
            &mut NoCodecs,
        )
        .unwrap();
        let sum: u64 = p.segments.iter().filter_map(|s| s.time_ns).sum();
        println!(
            "whole {:.3} ms spread {:.3}, sum {:.3} ms ({:.3}), load {:.1} ms, took {:.1} s",
            p.whole_ns as f64 / 1e6,
            p.spread,
            sum as f64 / 1e6,
            sum as f64 / p.whole_ns as f64,
            p.load_ns as f64 / 1e6,
            t.elapsed().as_secs_f64()
        );
        runs.push(p);
    }
    if runs.len() > 1 {
        let (a, b) = (&runs[0], &runs[1]);
        println!("whole differs {:.1}%", 100. * (a.whole_ns as f64 / b.whole_ns as f64 - 1.));
        let mut ds: Vec<f64> = a
            .segments
            .iter()
            .zip(&b.segments)
            .map(|(s, t)| {
                let (s, t) = (s.time_ns.unwrap() as f64, t.time_ns.unwrap() as f64);
                (s - t).abs() / t
            })
            .collect();
        for (s, t) in a.segments.iter().zip(&b.segments) {
            print!("{}/{} ", s.time_ns.unwrap() / 1000, t.time_ns.unwrap() / 1000);
        }
        println!();
        ds.sort_by(f64::total_cmp);
        println!(
            "segments differ: median {:.1}% 90th {:.1}% max {:.1}%",
            100. * ds[ds.len() / 2],
            100. * ds[ds.len() * 9 / 10],
            100. * ds[ds.len() - 1]
        );
    }
    if args.len() > 7 {
        let p = &runs[0];
        let whole = p.whole_ns as f64;
        let seg: Vec<f64> = p.segments.iter().map(|s| s.time_ns.unwrap() as f64 / whole).collect();
        let sum: f64 = seg.iter().sum();
        // all prefixes and suffixes relative to concurrent whole, twice
        let mut meas = vec![];
        for _rep in 0..2 {
            let mut v = vec![];
            for k in 0..cuts.len() {
                let o = ProfileOptions {
                    load: load.clone(),
                    anchors_max: 0,
                    budget: Duration::from_secs_f64(0.5),
                    rounds_min: 7,
                    ..Default::default()
                };
                let q = profile_with(
                    engine.as_ref(),
                    &Subject { model: &model, types: &types, cuts: &cuts[k..k + 1], slice: &slicer, inputs: &input },
                    &o,
                    &mut NoCodecs,
                )
                .unwrap();
                let w2 = q.whole_ns as f64;
                v.push((q.segments[0].time_ns.unwrap() as f64 / w2, q.segments[1].time_ns.unwrap() as f64 / w2));
            }
            meas.push(v);
        }
        let n = cuts.len();
        // predicted cumulative
        let cum = |seg: &[f64]| {
            let mut c = vec![];
            let mut t = 0.;
            for s in seg {
                t += s;
                c.push(t);
            }
            c
        };
        let raw = cum(&seg);
        let norm: Vec<f64> = raw.iter().map(|x| x / sum).collect();
        let anchored = |m: usize| -> Vec<f64> {
            let centre = |k: usize| {
                let (p, s) = meas[0][k];
                (p + 1. - s) / 2.
            };
            let mut idx: Vec<usize> = (0..m).map(|i| (2 * i + 1) * n / (2 * m)).collect();
            idx.dedup();
            let mut pts: Vec<(f64, f64)> = vec![(0., 0.)];
            for &k in &idx {
                let c = centre(k).max(pts.last().unwrap().1);
                pts.push((raw[k], c));
            }
            pts.push((sum, 1f64.max(pts.last().unwrap().1)));
            (0..n)
                .map(|k| {
                    let r = raw[k];
                    let j = pts.iter().position(|q| q.0 >= r - 1e-12).unwrap().max(1);
                    let (a, b) = (pts[j - 1], pts[j]);
                    a.1 + (b.1 - a.1) * if b.0 > a.0 { (r - a.0) / (b.0 - a.0) } else { 0. }
                })
                .collect()
        };
        let eval = |label: &str, c: &[f64], total: f64| {
            let mut e: Vec<f64> = vec![];
            let mut rel = vec![];
            for k in 0..n {
                let (p, s) = meas[1][k];
                for (pred, real) in [(c[k], p), (total - c[k], s)] {
                    e.push((pred - real).abs());
                    if real > 0.1 {
                        rel.push((pred / real - 1.).abs());
                    }
                }
            }
            e.sort_by(f64::total_cmp);
            rel.sort_by(f64::total_cmp);
            println!(
                "{label:12} error of whole: mean {:.1}% max {:.1}%; relative where > 10% of whole: median {:.1}% max {:.1}%",
                100. * e.iter().sum::<f64>() / e.len() as f64,
                100. * e[e.len() - 1],
                100. * rel[rel.len() / 2],
                100. * rel[rel.len() - 1]
            );
        };
        eval("raw", &raw, sum);
        eval("normalized", &norm, 1.);
        for m in [2, 4, 8, 16, n] {
            eval(&format!("anchors {m}"), &anchored(m.min(n)), 1.);
        }
        let oh: Vec<f64> = meas[1].iter().map(|(p, s)| p + s - 1.).collect();
        let mut o2 = oh.clone();
        o2.sort_by(f64::total_cmp);
        println!(
            "overhead of one cut: median {:.1}% min {:.1}% max {:.1}%",
            100. * o2[n / 2],
            100. * o2[0],
            100. * o2[n - 1]
        );
        let mut rep: Vec<f64> =
            meas[0].iter().zip(&meas[1]).flat_map(|(a, b)| [(a.0 - b.0).abs(), (a.1 - b.1).abs()]).collect();
        rep.sort_by(f64::total_cmp);
        println!(
            "repeat of halves: mean {:.2}% max {:.1}% of whole",
            100. * rep.iter().sum::<f64>() / rep.len() as f64,
            100. * rep[rep.len() - 1]
        );
    }
}
fn overhead(model: &Model, x: &Tensor, name: &str, engine: &dyn Engine, threads: usize) {
    let mut ours = engine.load(model, &LoadOptions::with_threads(threads)).unwrap();
    let env = tierline_engine::onnxruntime_environment().unwrap();
    let mut b = ort::session::Session::builder(&env).unwrap();
    if threads != 0 {
        b = b.with_independent_thread_pool().unwrap().with_intra_threads(threads).unwrap();
    }
    let mut direct = b.commit_from_memory(&model.to_bytes().unwrap()).unwrap();
    let data = x.as_f32().unwrap();
    let (mut a, mut d, mut outs) = (vec![], vec![], vec![]);
    for i in 0..400 {
        let mut go = |which: bool| {
            let t = Instant::now();
            if which {
                ours.run_into(&[(name, x)], &mut outs).unwrap();
            } else {
                let v = ort::value::TensorRef::from_array_view((x.shape(), data)).unwrap();
                let o = direct.run(ort::inputs![v]).unwrap();
                let y = o[0].try_extract_tensor::<f32>().unwrap();
                std::hint::black_box(y.1[0]);
            }
            t.elapsed().as_nanos() as u64
        };
        let (p, q) = if i % 2 == 0 {
            let p = go(true);
            (p, go(false))
        } else {
            let q = go(false);
            (go(true), q)
        };
        if i >= 10 {
            a.push(p);
            d.push(q);
        }
    }
    a.sort();
    d.sort();
    for q in [0, 10, 25, 50] {
        let k = a.len() * q / 100;
        println!(
            "quantile {q}: ours {:.3} ms direct {:.3} ms ratio {:.4}",
            a[k] as f64 / 1e6,
            d[k] as f64 / 1e6,
            a[k] as f64 / d[k] as f64
        );
    }
}
