"""What a result stands on: BibTeX of the sources that were used."""

from typing import Protocol

from dynprune.core.errors import InvalidInputError
from dynprune.core.provenance import Provenance

_BIBTEX = {
    "slq": """@article{ubaru2017fast,
  title={Fast Estimation of $tr(f(A))$ via Stochastic {L}anczos Quadrature},
  author={Ubaru, Shashanka and Chen, Jie and Saad, Yousef},
  journal={SIAM Journal on Matrix Analysis and Applications},
  year={2017}
}""",
    "xtrace": """@article{epperly2024xtrace,
  title={{XTrace}: Making the Most of Every Sample in Stochastic Trace Estimation},
  author={Epperly, Ethan N. and Tropp, Joel A. and Webber, Robert J.},
  journal={SIAM Journal on Matrix Analysis and Applications},
  year={2024}
}""",
    "hutch++": """@inproceedings{meyer2021hutchpp,
  title={Hutch++: Optimal Stochastic Trace Estimation},
  author={Meyer, Raphael A. and Musco, Cameron and Musco, Christopher
          and Woodruff, David P.},
  booktitle={Symposium on Simplicity in Algorithms},
  year={2021}
}""",
    "hutchinson": """@article{hutchinson1989stochastic,
  title={A Stochastic Estimator of the Trace of the Influence Matrix for
         {L}aplacian Smoothing Splines},
  author={Hutchinson, Michael F.},
  journal={Communications in Statistics -- Simulation and Computation},
  year={1989}
}""",
    "bekas": """@article{bekas2007estimator,
  title={An Estimator for the Diagonal of a Matrix},
  author={Bekas, Costas and Kokiopoulou, Effrosyni and Saad, Yousef},
  journal={Applied Numerical Mathematics},
  year={2007}
}""",
    "imp": """@inproceedings{frankle2019lottery,
  title={The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks},
  author={Frankle, Jonathan and Carbin, Michael},
  booktitle={International Conference on Learning Representations},
  year={2019}
}""",
    "obd": """@inproceedings{lecun1989obd,
  title={Optimal Brain Damage},
  author={LeCun, Yann and Denker, John S. and Solla, Sara A.},
  booktitle={Advances in Neural Information Processing Systems},
  year={1989}
}""",
    "obs": """@inproceedings{hassibi1992obs,
  title={Second order derivatives for network pruning: Optimal Brain Surgeon},
  author={Hassibi, Babak and Stork, David G.},
  booktitle={Advances in Neural Information Processing Systems},
  year={1992}
}""",
    "woodfisher": """@inproceedings{singh2020woodfisher,
  title={{WoodFisher}: Efficient Second-Order Approximation for Neural Network
         Compression},
  author={Singh, Sidak Pal and Alistarh, Dan},
  booktitle={Advances in Neural Information Processing Systems},
  year={2020}
}""",
    "sparsegpt": """@inproceedings{frantar2023sparsegpt,
  title={{SparseGPT}: Massive Language Models Can Be Accurately Pruned in One-Shot},
  author={Frantar, Elias and Alistarh, Dan},
  booktitle={International Conference on Machine Learning},
  year={2023}
}""",
    "lr_rewinding": """@inproceedings{renda2020rewinding,
  title={Comparing Rewinding and Fine-tuning in Neural Network Pruning},
  author={Renda, Alex and Frankle, Jonathan and Carbin, Michael},
  booktitle={International Conference on Learning Representations},
  year={2020}
}""",
    "gmp": """@misc{zhu2017gmp,
  title={To prune, or not to prune: exploring the efficacy of pruning for model
         compression},
  author={Zhu, Michael and Gupta, Suyog},
  year={2017},
  eprint={1710.01878},
  archivePrefix={arXiv}
}""",
    "rigl": """@inproceedings{evci2020rigl,
  title={Rigging the Lottery: Making All Tickets Winners},
  author={Evci, Utku and Gale, Trevor and Menick, Jacob and Castro, Pablo Samuel
          and Elsen, Erich},
  booktitle={International Conference on Machine Learning},
  year={2020}
}""",
    "set": """@article{mocanu2018set,
  title={Scalable training of artificial neural networks with adaptive sparse
         connectivity inspired by network science},
  author={Mocanu, Decebal Constantin and Mocanu, Elena and Stone, Peter
          and Nguyen, Phuong H. and Gibescu, Madeleine and Liotta, Antonio},
  journal={Nature Communications},
  year={2018}
}""",
    "rewinding": """@inproceedings{frankle2020linear,
  title={Linear Mode Connectivity and the Lottery Ticket Hypothesis},
  author={Frankle, Jonathan and Dziugaite, Gintare Karolina and Roy, Daniel
          and Carbin, Michael},
  booktitle={International Conference on Machine Learning},
  year={2020}
}""",
    "lamp": """@inproceedings{lee2021lamp,
  title={Layer-adaptive Sparsity for the Magnitude-based Pruning},
  author={Lee, Jaeho and Park, Sejun and Mo, Sangwoo and Ahn, Sungsoo
          and Shin, Jinwoo},
  booktitle={International Conference on Learning Representations},
  year={2021}
}""",
    "erk": """@inproceedings{evci2020rigging,
  title={Rigging the Lottery: Making All Tickets Winners},
  author={Evci, Utku and Gale, Trevor and Menick, Jacob
          and Castro, Pablo Samuel and Elsen, Erich},
  booktitle={International Conference on Machine Learning},
  year={2020}
}""",
    "snip": """@inproceedings{lee2019snip,
  title={{SNIP}: Single-shot Network Pruning based on Connection Sensitivity},
  author={Lee, Namhoon and Ajanthan, Thalaiyasingam and Torr, Philip},
  booktitle={International Conference on Learning Representations},
  year={2019}
}""",
    "iterative-snip": """@misc{verdenius2020pruning,
  title={Pruning via Iterative Ranking of Sensitivity Statistics},
  author={Verdenius, Stijn and Stol, Maarten and Forr{\\'e}, Patrick},
  year={2020},
  note={arXiv:2006.00896}
}""",
    "force": """@inproceedings{dejorge2021progressive,
  title={Progressive Skeletonization: Trimming more fat from a network at
         initialization},
  author={de Jorge, Pau and Sanyal, Amartya and Behl, Harkirat S.
          and Torr, Philip H. S. and Rogez, Gregory and Dokania, Puneet K.},
  booktitle={International Conference on Learning Representations},
  year={2021}
}""",
    "grasp": """@inproceedings{wang2020grasp,
  title={Picking Winning Tickets Before Training by Preserving Gradient Flow},
  author={Wang, Chaoqi and Zhang, Guodong and Grosse, Roger},
  booktitle={International Conference on Learning Representations},
  year={2020}
}""",
    "gem_miner": """@inproceedings{sreenivasan2022rare,
  title={Rare Gems: Finding Lottery Tickets at Initialization},
  author={Sreenivasan, Kartik and Sohn, Jy-yong and Yang, Liu and Grinde, Matthew
          and Nagle, Alliot and Wang, Hongyi and Xing, Eric and Lee, Kangwook
          and Papailiopoulos, Dimitris},
  booktitle={Advances in Neural Information Processing Systems},
  year={2022}
}""",
    "edge_popup": """@inproceedings{ramanujan2020hidden,
  title={What's Hidden in a Randomly Weighted Neural Network?},
  author={Ramanujan, Vivek and Wortsman, Mitchell and Kembhavi, Aniruddha
          and Farhadi, Ali and Rastegari, Mohammad},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2020}
}""",
    "early_bird": """@inproceedings{you2020drawing,
  title={Drawing Early-Bird Tickets: Toward More Efficient Training of Deep Networks},
  author={You, Haoran and Li, Chaojian and Xu, Pengfei and Fu, Yonggan and Wang, Yue
          and Chen, Xiaohan and Baraniuk, Richard G. and Wang, Zhangyang
          and Lin, Yingyan},
  booktitle={International Conference on Learning Representations},
  year={2020}
}""",
    "synflow": """@inproceedings{tanaka2020synflow,
  title={Pruning neural networks without any data by iteratively conserving
         synaptic flow},
  author={Tanaka, Hidenori and Kunin, Daniel and Yamins, Daniel and Ganguli, Surya},
  booktitle={Advances in Neural Information Processing Systems},
  year={2020}
}""",
    "imc": """@inproceedings{zhang2021imc,
  title={Validating the Lottery Ticket Hypothesis with Inertial Manifold Theory},
  author={Zhang, Zeru and Jin, Jiayin and Zhang, Zijie and Zhou, Yang and Zhao, Xin
          and Ren, Jiaxiang and Liu, Ji and Wu, Lingfei and Jin, Ruoming
          and Dou, Dejing},
  booktitle={Advances in Neural Information Processing Systems},
  year={2021}
}""",
    "koopman_training": """@inproceedings{dogra2020koopman,
  title={Optimizing Neural Networks via {K}oopman Operator Theory},
  author={Dogra, Akshunna S. and Redman, William T.},
  booktitle={Advances in Neural Information Processing Systems},
  year={2020}
}""",
    "dmd": """@article{tu2014dmd,
  title={On dynamic mode decomposition: Theory and applications},
  author={Tu, Jonathan H. and Rowley, Clarence W. and Luchtenburg, Dirk M.
          and Brunton, Steven L. and Kutz, J. Nathan},
  journal={Journal of Computational Dynamics},
  year={2014}
}""",
    "rg": """@inproceedings{redman2022rg,
  title={Universality of Winning Tickets: A Renormalization Group Perspective},
  author={Redman, William T. and Chen, Tianlong and Wang, Zhangyang
          and Dogra, Akshunna S.},
  booktitle={International Conference on Machine Learning},
  year={2022}
}""",
    "elastic": """@inproceedings{chen2021elastic,
  title={The Elastic Lottery Ticket Hypothesis},
  author={Chen, Xiaohan and Cheng, Yu and Wang, Shuohang and Gan, Zhe
          and Liu, Jingjing and Wang, Zhangyang},
  booktitle={Advances in Neural Information Processing Systems},
  year={2021}
}""",
    "sanity": """@inproceedings{frankle2021missing,
  title={Pruning Neural Networks at Initialization: Why Are We Missing the Mark?},
  author={Frankle, Jonathan and Dziugaite, Gintare Karolina and Roy, Daniel
          and Carbin, Michael},
  booktitle={International Conference on Learning Representations},
  year={2021}
}""",
    "su2020": """@inproceedings{su2020sanity,
  title={Sanity-Checking Pruning Methods: Random Tickets can Win the Jackpot},
  author={Su, Jingtong and Chen, Yihang and Cai, Tianle and Wu, Tianhao and Gao, Ruiqi
          and Wang, Liwei and Lee, Jason D.},
  booktitle={Advances in Neural Information Processing Systems},
  year={2020}
}""",
    "lanczos": """@article{wu2000thick,
  title={Thick-restart {L}anczos method for large symmetric eigenvalue problems},
  author={Wu, Kesheng and Simon, Horst},
  journal={SIAM Journal on Matrix Analysis and Applications},
  year={2000}
}""",
    "effective": """@article{vysogorets2023connectivity,
  title={Connectivity Matters: Neural Network Pruning Through the Lens of Effective
         Sparsity},
  author={Vysogorets, Artem and Kempe, Julia},
  journal={Journal of Machine Learning Research},
  year={2023}
}""",
    "ipr": """@article{ingrosso2022convolutional,
  title={Data-driven emergence of convolutional structure in neural networks},
  author={Ingrosso, Alessandro and Goldt, Sebastian},
  journal={Proceedings of the National Academy of Sciences},
  year={2022}
}""",
    "path_norm": """@inproceedings{neyshabur2015norm,
  title={Norm-Based Capacity Control in Neural Networks},
  author={Neyshabur, Behnam and Tomioka, Ryota and Srebro, Nathan},
  booktitle={Conference on Learning Theory},
  year={2015}
}""",
    "ramanujan": """@inproceedings{pal2022ramanujan,
  title={A Study on the {R}amanujan Graph Property of Winning Lottery Tickets},
  author={Pal, Bithika and Biswas, Arindam and Kolay, Sudeshna and Mitra, Pabitra
          and Basu, Biswajit},
  booktitle={International Conference on Machine Learning},
  year={2022}
}""",
    "relational_graph": """@inproceedings{you2020graph,
  title={Graph Structure of Neural Networks},
  author={You, Jiaxuan and Leskovec, Jure and He, Kaiming and Xie, Saining},
  booktitle={International Conference on Machine Learning},
  year={2020}
}""",
}


class HasProvenance(Protocol):
    """Anything that says where it comes from."""

    @property
    def provenance(self) -> Provenance:
        """The record."""
        ...


def cite(result: HasProvenance) -> str:
    """Return the BibTeX of the sources that a result used.

    Args:
        result: Any dynprune result.

    Returns:
        BibTeX entries, a blank line between them; empty if none.

    Raises:
        InvalidInputError: If a source has no entry.
    """
    missing = [key for key in result.provenance.sources if key not in _BIBTEX]
    if missing:
        raise InvalidInputError(
            f"No BibTeX for {missing}. Known: {', '.join(sorted(_BIBTEX))}."
        )
    return "\n\n".join(_BIBTEX[key] for key in result.provenance.sources)
